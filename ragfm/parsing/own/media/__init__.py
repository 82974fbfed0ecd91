"""Parsers for images and audio.

image  images, by OCR, and pictures in documents, as figures
ocr    the OCR engine
audio  audio and the sound of videos, by speech recognition
"""
