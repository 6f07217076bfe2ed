_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
# The paper's lambdas lie between 1/4 and 5/4; 1 was better than 1/2 from random weights on shapes. Of the
# four decays only the first: in 2,000 iterations the others would hold on to old weights.
method = dict(type='ThreeStage', consistency_weight=1.0, pseudo_weight=1.0, decays=[(0.0, 0.99)], decay_start=10)
views = dict(
    strong=[dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)), dict(type='RandomCutouts', number=3)])
