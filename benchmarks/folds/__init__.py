"""Folds: is the accuracy over the folds that of the student that ships?"""
