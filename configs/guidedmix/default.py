_base_ = [
    '../_base_/models/mitrans_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
    '../_base_/methods/guidedmix.py',
]
# Eq. (11)'s weights of 1, an omega of 1 and a lambda below 0.5 are for ImageNet's weights. From random weights, with 32
# labelled images of another drawing of shapes, larger values lost more mIoU in 2,000 steps: docs/benchmarks/shapes.md.
method = dict(lambda_max=0.2, unlabeled_weight=0.04, decoupling_weight=0.04, classifier_weight=0.0, rampup=0.5)
