# Hu et al., NeurIPS 2021, as in the authors' program; each part can be turned off.
method = dict(
    equalizer=dict(momentum=0.999, gamma=2.0, cutmix=True, copy_paste=True, sampling=True, reweighting=True))
