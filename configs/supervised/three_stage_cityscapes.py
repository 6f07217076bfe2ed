# Stage 1 of Ke et al. on Cityscapes, Sec. IV-B: images of 512 x 1024 (tools/resize_dataset.py), 5 crops of 256 x 512.
_base_ = './three_stage_voc.py'
data = dict(batch_size=5, crop=(256, 512), scale=(1.0, 1.0))
