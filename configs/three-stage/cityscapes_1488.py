# Sec. IV-B, 1,488 labels: 3 images from L and U, 2 from L.
_base_ = './cityscapes_100_to_744.py'
data = dict(batch_size=2, unlabeled_batch_size=3)
