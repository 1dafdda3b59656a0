"""What goes out to others and comes in from them: predictions, maps, encoders on the hub, published
files.
"""
