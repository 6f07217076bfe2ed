# Ke et al., ECCV 2020, "MT" of Table 1 and Appendix C: lambda 1, eta 3 epochs, alpha 0.99; no noise, so both see one view.
_base_ = '../_base_/recipes/gct_voc_deeplabv2.py'
method = dict(type='MeanTeacher', consistency='mse', weight=1.0, rampup='3 epochs', decay=0.99)
views = dict(strong=[])
