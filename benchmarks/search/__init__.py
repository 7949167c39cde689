"""Does the search find the best student within the budget, and at what part of the cost of trying them all?"""
