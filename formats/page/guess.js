/* Chapter: to come. */
"use strict";
