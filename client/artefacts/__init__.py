"""Artefacts: an adapted network as a file that runs where the training did not, with a card beside it.

    transform.py       images into what a network takes, by numpy and Pillow alone
    card.py            what an artefact is, in JSON beside it; the two are replaced as one
    kinds.py           which suffix is which kind of artefact
    runnable.py        an artefact that classifies: its own runtime is imported, no other
    image_files.py     the images in folders, one after the other
    predictions.py     what it says of each
    prediction_files.py  that as CSV, JSON or a table
    evaluation.py      what it takes labelled images for

    facts.py           what a card says of a network: accuracy, latency, sizes
    card_words.py      a card in sentences
    torch_network.py   a saved network, run by torch
    int8.py            post-training quantisation, calibrated on the device's own images
    executorch_program.py   the network as an ExecuTorch program
    exporting.py       writes an artefact and its card

The first eight import no torch, so that a device which only predicts needs none; tests keep it so.
"""
