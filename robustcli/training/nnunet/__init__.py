"""nnU-Net's way of training: its loss, schedule, patches and augmentation, each on its own."""
