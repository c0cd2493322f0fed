#!/usr/bin/awk -f
# A line through noisy points by gradient descent, in awk: usage train.awk LEARNING_RATE SEED.
# Two lines of it, those with `events`, are for sweep.
BEGIN {
    rate = ARGV[1]; srand(ARGV[2])
    events = ENVIRON["SWEEP_EVENTS"]; if (events == "") events = "/dev/stdout"
    for (i = 0; i < 3000; i++) { x[i] = 2 * rand() - 1; y[i] = 3 * x[i] - 1 + (rand() - 0.5) / 5 }
    for (step = 0; step <= 2000; step++) {
        ds = di = 0
        for (i = 0; i < 2500; i++) { e = slope * x[i] + intercept - y[i]; ds += e * x[i]; di += e }
        slope -= rate * ds / 2500; intercept -= rate * di / 2500
        if (step % 10) continue
        loss = 0
        for (i = 2500; i < 3000; i++) { e = slope * x[i] + intercept - y[i]; loss += e * e / 500 }
        printf "{\"v\": 1, \"seq\": %d, \"event\": \"evaluated\", \"step\": %d, \"metrics\": {\"val_loss\": %.6f}}\n", step, step, loss >> events
        fflush(events)
    }
}
