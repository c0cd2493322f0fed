"""The tests' own machinery: groups of pytest-xdist hold, as what a group makes once takes minutes.

It must not test the product.
"""

import pytest


@pytest.mark.xdist_group("groups")
def test_groups_hold(request):
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process has all tests")
    assert "@groups" in request.node.nodeid, "pytest and xdist do not fit: see constraints.txt"
