# Tu et al., GuidedMix-Net: what the paper says (similar pairs, soft decoupling, lambda below 0.5 on VOC), then what it
# leaves open. omega = 1 on the sum over classes is about what CCT's 30 is on the mean over VOC's 21; CCT ramps up over a
# tenth of the training.
method = dict(
    type='GuidedMix',
    pairs='similar',
    lambda_max=0.5,
    decoupling='soft',
    unlabeled_weight=1.0,
    decoupling_weight=1.0,
    classifier_weight=1.0,
    rampup=0.1,
    warmup=0.05,
    alpha=1.0,
    bound='scale',
    distance='pooled',
    labeled_decoupling=None,
    space='probabilities',
    remainder='normalize',
    constant=True)
