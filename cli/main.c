/* SPDX-License-Identifier: MIT */
/* ubd: finds the verb and runs it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "say.h"
#include "state.h"
#include "verbs.h"

const struct verb *const verbs[] = {
	&verb_add,     &verb_del,      &verb_list,   &verb_info, &verb_features, &verb_targets,
	&verb_recover, &verb_snapshot, &verb_resize, &verb_help, &verb_version,	 NULL,
};

static int run_verb(const char *name, int argc, char **argv)
{
	struct say_guess guess = {.word = name};

	for (const struct verb *const *v = verbs; *v; v++) {
		if (strcmp((*v)->name, name) == 0)
			return (*v)->run(argc, argv);
		say_guess_try(&guess, (*v)->name);
	}
	return say_misused("unknown verb '%s'%s (see ubd help)", name,
			   say_guess_hint(&guess, "ubd "));
}

/* A pipe or device opened in the place of a closed standard stream would get what is printed. */
static void fill_standard_streams(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

int main(int argc, char **argv)
{
	int code;

	fill_standard_streams();
	state_dir_choose();
	if (argc < 2) {
		verb_help.run(0, NULL);
		return EXIT_MISUSED;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
		code = verb_help.run(argc - 2, argv + 2);
	else if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)
		code = verb_version.run(argc - 2, argv + 2);
	else if (argv[1][0] == '-')
		code = say_misused("option '%s' comes after a verb, as in ubd list %s "
				   "(see ubd help)",
				   argv[1], argv[1]);
	else
		code = run_verb(argv[1], argc - 2, argv + 2);
	/* What was printed must have arrived: a full disk or a closed pipe is a failure. */
	if (fflush(stdout) || ferror(stdout))
		code = code ? code : say_failed("cannot write the output: %m");
	return code;
}
