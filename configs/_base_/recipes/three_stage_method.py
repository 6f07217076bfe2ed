# The authors' program: decay in four steps over its 60 epochs; 3 of 14 operations, then three cutouts of 32.
method = dict(
    type='ThreeStage',
    stage=2,
    branch=None,
    consistency_weight=0.5,
    pseudo_weight=0.5,
    decays=[(0.0, 0.99), (1 / 3, 0.995), (2 / 3, 0.9975), (5 / 6, 0.999)])
views = dict(
    strong=[
        dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)),
        dict(type='RandomCutouts', number=3, size=32)
    ])
