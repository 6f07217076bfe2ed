# Sec. IV-B, 100, 372 or 744 labels: lambda = 1/2; images of 512 x 1024 (tools/resize_dataset.py), crops of 256 x 512,
# flipped; 1 image from L and U, 4 from L.
_base_ = './voc_1_50.py'
data = dict(batch_size=4, crop=(256, 512), scale=(1.0, 1.0))
method = dict(consistency_weight=0.5, pseudo_weight=0.5)
