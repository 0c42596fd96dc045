"""What headers often hold: deflate's preset dictionary. A part of the format: never to be changed."""

DICTIONARY = b"".join(
    [
        b"running_mean running_var num_batches_tracked embedding position_embedding class_token",
        b"attention\x07self_attn\x08out_proj\x07in_proj\x04norm\x05norm1\x05norm2\x03mlp\x03fc1\x03fc2\x06linear",
        b"\x08encoder\x06layers\x05stage\x06blocks\x05block\x0adownsample\x08shortcut\x08features\x0aclassifier",
        b"\x04body\x04stem\x04head\x06layer1\x06layer2\x06layer3\x06layer4\x06stage1\x06stage2\x06stage3",
        b"\x012\x013\x014\x015\x016\x010\x011\x05conv3\x03bn3\x05conv1\x03bn1\x05conv2\x03bn2\x02fc\x03fc3\x03fc1\x03fc2",
    ]
)
