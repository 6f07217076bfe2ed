# The encoder of CCT is a dilated ResNet of stride 8, as PSPNet's.
_base_ = [
    "sslseg::_base_/models/mitrans_r18s.py",
    "sslseg::_base_/schedules/adamw_2k.py",
    "sslseg::_base_/runtime/default.py",
]
custom_imports = dict(imports=["cct"], allow_failed_imports=False)
model = dict(backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), decode_head=dict(strides=(4, 8, 8, 8)))
method = dict(type="AuxiliaryDecoders")
