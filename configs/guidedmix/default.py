_base_ = [
    '../_base_/models/mitrans_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
# Weights of L_usup and L_dec and the bound of lambda are from networks with random weights, of which larger values lost more
# mIoU in 2,000 iterations: docs/benchmarks/shapes.md. L_dec teaches the prediction of mixtures before they become targets.
method = dict(
    type='GuidedMix',
    lambda_max=0.2,
    unlabeled_weight=0.04,
    decoupling_weight=0.04,
    warmup=0.1,
    decoupling_warmup=0.1,
    rampup=0.3)
