"""The classes of each pack, in the order of their labels, and the number that each class has in tables of results.

Tables of results number the classes of all packs together, so that metrics can be named without knowing the pack.
"""

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SCENES = ("house", "tree", "car", "star", "fish", "cup", "key")  # from frequent to rare
NUMBERED = tuple(dict.fromkeys([*VOC, *SCENES]))
