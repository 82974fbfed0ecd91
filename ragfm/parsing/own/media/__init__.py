"""Parsers for images and audio.

image    images, by OCR
ocr      the OCR engine
audio    audio, by speech recognition
"""
