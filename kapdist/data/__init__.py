"""Images: sources, betons, order, augmentation, loader. The only place that knows FFCV."""
