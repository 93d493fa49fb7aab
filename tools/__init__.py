"""What we know of images and of OpenAI's image API: models, prices, messages, metadata, files.

Nothing here waits or speaks to the network.
"""
