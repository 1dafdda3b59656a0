"""What the paper and ubrain claim, as rows, and whether recorded numbers hold them."""
