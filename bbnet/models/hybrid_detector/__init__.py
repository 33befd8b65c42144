"""The hybrid detector: a convolutional and attentive backbone, a two-way neck, a deformable encoder and decoder.

`detector.HybridDetector(settings, classes)` is the network; `detector.slabs` and `detector.without_decay` say which of
its weights may be sparsified and which must not decay, and `detector.deployed` leaves out what training alone calls.
`forward(images, targets=None)` maps normalised images [batch, 3, height, width] to `outputs.Output`, or to
`outputs.Predictions` in evaluation mode. Height and width may be any; boxes are exact shares of the image if both are
multiples of 32. Targets are read in training mode alone, for denoising.
"""
