# Sec. IV-B, 1/8 of the labels: lambda = 5/8; 2 images from L and U, 8 from L.
_base_ = '../_base_/recipes/three_stage_voc.py'
data = dict(batch_size=8, unlabeled_batch_size=2)
method = dict(type='ThreeStage', consistency_weight=0.625, pseudo_weight=0.625)
