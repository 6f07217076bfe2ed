# Ke et al., ECCV 2020, "S4L" of Table 1 and Appendix C: lambda 0.1.
_base_ = '../_base_/recipes/gct_voc_deeplabv2.py'
method = dict(type='S4L', weight=0.1)
