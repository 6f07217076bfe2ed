# Wang et al., CVPR 2022, Table A1 and Appendix A; one epoch of warm start is that of VOC. Decay: as in the authors' program.
_base_ = ['./equalizer.py']
method = dict(
    type='U2PL',
    mix='cutmix',
    unlabeled_weight=1.0,
    alpha=0.2,
    adjust=True,
    epochs=None,
    warmup_epochs=1,  # passes through the unlabelled images
    decay=0.99,
    contrast_weight=0.1,
    threshold=0.3,
    ranks=(3, 20),
    reliability='unreliable',
    contrast=dict(
        dim=256, loss='infonce', anchors=50, negatives=256, temperature=0.5, size=30000, background=50000, remember=True))
