#pragma once
#include "emulator/language.h"
