/* SPDX-License-Identifier: MIT */
/* A shared object that is no target. */
int alien(void);

int alien(void)
{
	return 1;
}
