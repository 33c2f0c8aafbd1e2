"""The models, one a file: `resnet-18` is `resnet_18.py`. A run imports its own alone.

Each has `DIMENSIONS`, of an example that it takes (3: an image of shape (channels, height, width); 1: tokens of shape
(length,)), `LEAST`, the smallest height, width or length, and `build(shape, classes)`. None has batch normalization:
its running averages go wrong where clients have different labels, and server optimizers make them negative. Where a
paper has it, group normalization takes its place, as in Hsieh et al., The Non-IID Data Quagmire of Decentralized
Machine Learning, ICML 2020, and Reddi et al., Adaptive Federated Optimization, ICLR 2021.
"""
