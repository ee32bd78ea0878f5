"""The selective scan: one-dimensional and over the pixels of an image in four directions."""

from robustcli.models.scan.dispatch import selective_scan, ss2d_scan

__all__ = ["selective_scan", "ss2d_scan"]
