"""Methods for detection, segmentation, tracking and other outputs per place."""
