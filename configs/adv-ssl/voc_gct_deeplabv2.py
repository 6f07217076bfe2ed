# Ke et al., ECCV 2020, "AdvSSL" of Table 1 and Appendix C: lambda 0.01 and 0.001, without L_semi.
_base_ = '../_base_/recipes/gct_voc_deeplabv2.py'
method = dict(type='AdvSSL', labeled_weight=0.01, unlabeled_weight=0.001, semi_weight=0.0)
