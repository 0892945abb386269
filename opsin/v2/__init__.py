"""Programs written for the PaddlePaddle v2 API: `import opsin.v2 as paddle`."""
