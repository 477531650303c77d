"""Images, masks, cues and the data layers of both training stages."""

from repro.constants import CLASS_NAMES
from repro.data.coco import COCO_CLASS_NAMES, AnnotationCOCO, CocoInstances
from repro.data.cues import CueFile, convert_cues, write_cues
from repro.data.datasets import CueDataset, LabelMapDataset
from repro.data.image_list import read_id_list, read_label_list, read_pairs_list
from repro.data.images import find_images, preprocess_zoomed, read_image_bgr, read_image_rgb, subtract_mean
from repro.data.sampler import ItemSource, item_rng, make_loader
from repro.data.voc import VocLayout, colour_palette, read_mask, write_mask
from repro.layers.resize import resize_bilinear_u8, zoom_linear

__all__ = [
    "CLASS_NAMES",
    "COCO_CLASS_NAMES",
    "AnnotationCOCO",
    "CocoInstances",
    "CueDataset",
    "CueFile",
    "ItemSource",
    "LabelMapDataset",
    "VocLayout",
    "colour_palette",
    "convert_cues",
    "find_images",
    "item_rng",
    "make_loader",
    "preprocess_zoomed",
    "read_id_list",
    "read_image_bgr",
    "read_image_rgb",
    "read_label_list",
    "read_mask",
    "read_pairs_list",
    "resize_bilinear_u8",
    "subtract_mean",
    "write_cues",
    "write_mask",
    "zoom_linear",
]
