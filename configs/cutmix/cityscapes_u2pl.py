# The baseline of U2PL (Appendix A): its teacher's hard labels of all pixels; "MT" is the same without the mixing.
_base_ = '../_base_/recipes/u2pl_cityscapes.py'
method = dict(type='CutMix', consistency='hard', threshold=0.0)
