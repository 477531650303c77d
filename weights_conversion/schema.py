"""The fields that Caffe's prototxts have: those of BVLC Caffe 1.0 and of the DeepLab-v2 fork that the papers train in.

Every fork adds some. They are read like any other, and ``unknown_fields`` names them, so that nobody takes a setting
for followed that nothing here knows. Names and nesting are caffe.proto's.
"""

from __future__ import annotations

from collections.abc import Iterator

from weights_conversion.prototxt import Message

_FIELDS = {
    "SolverParameter": """net net_param train_net test_net train_net_param test_net_param train_state test_state
        test_iter test_interval test_compute_loss test_initialization base_lr display average_loss max_iter iter_size
        lr_policy gamma power momentum weight_decay regularization_type stepsize stepvalue clip_gradients snapshot
        snapshot_prefix snapshot_diff snapshot_format solver_mode device_id random_seed type delta momentum2 rms_decay
        debug_info snapshot_after_train solver_type layer_wise_reduce weights""",
    "NetParameter": "name input input_shape input_dim force_backward state debug_info layer layers",
    "NetState": "phase level stage",
    "BlobShape": "dim",
    "LayerParameter": """name type bottom top phase loss_weight param blobs propagate_down include exclude
        transform_param loss_param accuracy_param argmax_param batch_norm_param bias_param clip_param concat_param
        contrastive_loss_param convolution_param crop_param data_param dropout_param dummy_data_param eltwise_param
        elu_param embed_param exp_param flatten_param hdf5_data_param hdf5_output_param hinge_loss_param
        image_data_param infogain_loss_param inner_product_param input_param log_param lrn_param memory_data_param
        mvn_param parameter_param pooling_param power_param prelu_param python_param recurrent_param reduction_param
        relu_param reshape_param scale_param sigmoid_param softmax_param spp_param slice_param swish_param tanh_param
        threshold_param tile_param window_data_param interp_param seg_accuracy_param densecrf_param mat_read_param
        mat_write_param adaptive_bias_channel_param bias_channel_param unpooling_param domain_transform_param""",
    "ParamSpec": "name share_mode lr_mult decay_mult",
    "NetStateRule": "phase min_level max_level stage not_stage",
    "FillerParameter": "type value min max mean std sparse variance_norm",
    "TransformationParameter": "scale mirror crop_size mean_file mean_value force_color force_gray",
    "LossParameter": "ignore_label normalization normalize",
    "BatchNormParameter": "use_global_stats moving_average_fraction eps",
    "ConvolutionParameter": """num_output bias_term pad kernel_size group stride weight_filler bias_filler pad_h pad_w
        kernel_h kernel_w stride_h stride_w engine axis force_nd_im2col dilation""",
    "DropoutParameter": "dropout_ratio scale_train",
    "EltwiseParameter": "operation coeff stable_prod_grad",
    "HDF5DataParameter": "source batch_size shuffle",
    "ImageDataParameter": """source batch_size rand_skip shuffle new_height new_width is_color scale mean_file crop_size
        mirror root_folder label_type""",
    "InnerProductParameter": "num_output bias_term weight_filler bias_filler axis transpose",
    "InterpParameter": "height width zoom_factor shrink_factor pad_beg pad_end",
    "PoolingParameter": """pool pad kernel_size stride engine global_pooling pad_h pad_w kernel_h kernel_w stride_h
        stride_w round_mode""",
    "PythonParameter": "module layer param_str share_in_parallel",
    "ReLUParameter": "negative_slope engine",
    "ScaleParameter": "axis num_axes filler bias_term bias_filler",
    "SegAccuracyParameter": "ignore_label",
    "SoftmaxParameter": "axis engine",
}
_KNOWN = {kind: frozenset(names.split()) for kind, names in _FIELDS.items()}
# the field that holds a message -> its kind; messages of other fields are not looked into
_KINDS = {
    **dict.fromkeys(("net_param", "train_net_param", "test_net_param"), "NetParameter"),
    **dict.fromkeys(("train_state", "test_state", "state"), "NetState"),
    **dict.fromkeys(("include", "exclude"), "NetStateRule"),
    **dict.fromkeys(("weight_filler", "bias_filler", "filler"), "FillerParameter"),
    "input_shape": "BlobShape",
    "layer": "LayerParameter",
    "param": "ParamSpec",
    "loss_param": "LossParameter",
    "transform_param": "TransformationParameter",
    "batch_norm_param": "BatchNormParameter",
    "convolution_param": "ConvolutionParameter",
    "dropout_param": "DropoutParameter",
    "eltwise_param": "EltwiseParameter",
    "hdf5_data_param": "HDF5DataParameter",
    "image_data_param": "ImageDataParameter",
    "inner_product_param": "InnerProductParameter",
    "interp_param": "InterpParameter",
    "pooling_param": "PoolingParameter",
    "python_param": "PythonParameter",
    "relu_param": "ReLUParameter",
    "scale_param": "ScaleParameter",
    "softmax_param": "SoftmaxParameter",
    "seg_accuracy_param": "SegAccuracyParameter",
}


def unknown_fields(message: Message, kind: str) -> list[str]:
    """The fields of a ``SolverParameter`` or ``NetParameter`` that neither Caffe has, each with its place.

    Such as ``layer conv1: convolution_param.hole``. Fields inside of unknown messages are not listed again.
    """
    return list(dict.fromkeys(_unknown(message, kind, "")))


def _unknown(message: Message, kind: str, place: str) -> Iterator[str]:
    for name, values in message.items():
        if name not in _KNOWN[kind]:
            yield place + name
        elif inner := _KINDS.get(name):
            for value in values:
                if isinstance(value, Message):
                    yield from _unknown(value, inner, _place(name, value, place))


def _place(name: str, value: Message, place: str) -> str:
    return f"layer {value.get('name', ['?'])[0]}: " if name == "layer" else f"{place}{name}."
