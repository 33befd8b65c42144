"""Thresholds of the checks on gradient flow. docs/diagnostics.md says where each of them comes from."""

# Published absolute thresholds, of gradient norms and of the largest change of an entry. They depend on the size of a
# tensor, since the norm of equal entries grows with the square root of their number.
VANISHING_NORM = 1e-7
LOW_NORM = 1e-5
HIGH_NORM = 10.0
UPDATED = 1e-8
UNCHANGED = 1e-6

# Thresholds that do not depend on the size of a tensor: of the root mean square of its gradient, where Adam's default
# epsilon begins to reduce the update, and of norms relative to the norm of the weight.
VANISHING_RMS = 1e-8
SLOW_RATIO = 1e-6
FAST_RATIO = 0.1
UNCHANGED_RATIO = 1e-6

# Shares of the observations from which a check has a finding, and numbers of observations beyond which it has one.
MOST = 0.5
SOME = 0.1
STUCK_OBSERVATIONS = 5
GRADIENTS_SEEN = 10
DEAD_OBSERVATIONS = 10  # at the end of the training, in all of which a dead unit has no gradient
