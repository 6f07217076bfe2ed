# Sec. IV-B, 1/100 and 1/50 of the labels: lambda = 1/4; 1 image from L and U, 9 from L.
_base_ = '../_base_/recipes/three_stage_voc.py'
data = dict(batch_size=9, unlabeled_batch_size=1)
method = dict(type='ThreeStage', consistency_weight=0.25, pseudo_weight=0.25)
