"""Does a teacher that has learned the text first heal a pruned student better than labels do?"""
