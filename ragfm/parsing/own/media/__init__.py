"""Parsers for images and audio.

image    images, by OCR
ocr      the OCR engine
picture  pictures in documents, as figures
audio    audio and the sound of videos, by speech recognition
"""
