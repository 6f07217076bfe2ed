# The encoder of CCT is dilated to stride 8, as PSPNet's.
_base_ = [
    "sslseg::_base_/models/mitrans_lite0.py",
    "sslseg::_base_/schedules/adamw_2k.py",
    "sslseg::_base_/runtime/default.py",
]
custom_imports = dict(imports=["cct"], allow_failed_imports=False)
model = dict(backbone=dict(output_stride=8), decode_head=dict(strides=(4, 8, 8, 8)))
method = dict(type="AuxiliaryDecoders")
