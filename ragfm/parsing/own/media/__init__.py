"""Parsers for images, audio and video.

image    images, by OCR
ocr      the OCR engine
picture  pictures in documents, as figures
audio    audio, by speech recognition
video    video: the transcript, and a frame of each scene
"""
