# Sec. IV-B, 1/100 and 1/50 of the labels: lambda = 1/4; 1 image from L and U, 9 from L. The authors' program: decay in
# four steps over its 60 epochs; 3 of 14 operations, then three cutouts of 32.
_base_ = '../_base_/recipes/three_stage_voc.py'
data = dict(batch_size=9, unlabeled_batch_size=1)
method = dict(
    type='ThreeStage',
    stage=2,
    branch=None,
    consistency_weight=0.25,
    pseudo_weight=0.25,
    decays=[(0.0, 0.99), (1 / 3, 0.995), (2 / 3, 0.9975), (5 / 6, 0.999)])
views = dict(
    strong=[
        dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)),
        dict(type='RandomCutouts', number=3, size=32)
    ])
