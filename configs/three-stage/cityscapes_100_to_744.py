# Sec. IV-B, 100, 372 or 744 labels: lambda = 1/2; 1 image from L and U, 4 from L.
_base_ = '../_base_/recipes/three_stage_cityscapes.py'
data = dict(batch_size=4, unlabeled_batch_size=1)
method = dict(type='ThreeStage', consistency_weight=0.5, pseudo_weight=0.5)
