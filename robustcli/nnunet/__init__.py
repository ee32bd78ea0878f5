"""nnU-Net's formats and rules: plans, checkpoints, normalisation, inference, patches."""
