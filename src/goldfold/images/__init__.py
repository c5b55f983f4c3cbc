"""Images: from files to uint8 arrays, and a store that decodes each file once."""

from goldfold.images.cache import Images, LazyImages, StoredImages, open_images
from goldfold.images.decode import ImageSpec, UnreadableImage, decode, find_unreadable, load, locate, resize

__all__ = [
    "ImageSpec",
    "Images",
    "LazyImages",
    "StoredImages",
    "UnreadableImage",
    "decode",
    "find_unreadable",
    "load",
    "locate",
    "open_images",
    "resize",
]
