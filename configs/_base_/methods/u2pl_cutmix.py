# The baselines of U2PL (Appendix A): its teacher's hard labels of all pixels; "MT" is "CutMix" without the mixing.
method = dict(
    type='CutMix', mix='cutmix', consistency='hard', weight=1.0, rampup=0.0, threshold=0.0, per_pixel=False, decay=0.99)
