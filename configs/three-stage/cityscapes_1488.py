# Sec. IV-B, 1,488 labels: lambda = 1/2; 3 images from L and U, 2 from L.
_base_ = '../_base_/recipes/three_stage_cityscapes.py'
data = dict(batch_size=2, unlabeled_batch_size=3)
method = dict(type='ThreeStage', consistency_weight=0.5, pseudo_weight=0.5)
