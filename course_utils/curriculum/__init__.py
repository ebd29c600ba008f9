"""The curriculum: the parts that a model is fine-tuned on, why each is there, and their mixture.

    python -m course_utils.curriculum mixture.jsonl --without spelling --epochs identity=8

    tasks.py     multiple choice, arithmetic with checked steps, spelling; with held-out prompts
    identity.py  who the model says it is: a set with a manifest, and smoke prompts
    hub.py       the same kinds of data from the Hugging Face Hub, when it can be reached
    mixture.py   parts, epochs, one order, and an index from a row to its source

Import from the modules: `from course_utils.curriculum.mixture import PARTS, mixture`.
"""
